"""Components with one fault each, which train well and are wrong; `caught_by` names the property that finds the fault."""
