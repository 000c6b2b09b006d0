"""One reader per spelling of quantisation in config.json: from settings and headers to the stored parts."""
