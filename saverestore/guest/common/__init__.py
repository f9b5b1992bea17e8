"""What all kinds of real domains have in common, whatever they run on."""
