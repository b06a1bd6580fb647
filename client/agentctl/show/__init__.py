"""What users see: data on standard output, talk on standard error."""
