"""What connects postroom with other libraries, one module each. Each imports its library when it is imported."""
