"""The reproduction kit: measure the papers' tables and figures with the package ``holitom``, and judge their claims."""
