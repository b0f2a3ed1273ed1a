"""The built-in tasks, one file each: record -> example -> batch -> loss -> metrics -> prediction."""
