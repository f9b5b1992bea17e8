"""`tools/docs`: the pages that are made of the code, and the site."""
