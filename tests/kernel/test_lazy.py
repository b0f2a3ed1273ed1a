import pytest

from miniformer import kernel


@pytest.mark.parametrize("name", kernel.__all__)
def test_every_name_that_a_plugin_author_imports_is_there(name):
    assert getattr(kernel, name) is not None


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Atention"):
        _ = kernel.Atention


def test_importing_the_kernel_imports_no_torch(fresh_python):
    assert fresh_python("import sys, miniformer.kernel, miniformer.kernel.spec, miniformer.kernel.hooks\n"
                        "print('torch' in sys.modules)") == "False"
