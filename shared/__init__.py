"""What both the API and the workers must agree on."""
