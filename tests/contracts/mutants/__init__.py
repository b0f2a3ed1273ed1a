"""Components with one fault each, of the kind that trains well and is wrong; `caught_by` names the property that tells."""
