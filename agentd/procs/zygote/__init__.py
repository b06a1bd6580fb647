"""Workers that are there at once: forked from an interpreter that has imported what they need already."""
