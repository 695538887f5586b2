"""`jaxmlic report`: one HTML file of runs, with everything in it, to be looked at without a network."""
