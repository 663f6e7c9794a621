"""Any file of any length: what is known of it, and how it is put back."""
