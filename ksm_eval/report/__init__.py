"""How a prediction is shown. Nothing here computes, or knows drgn or the command line."""
