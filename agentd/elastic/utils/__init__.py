"""Small parts that several rooms of the elastic library share."""
