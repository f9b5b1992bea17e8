"""Domains as a toolstack knows them: finding, describing, creating and destroying them."""
