"""Do the intervals cover, and how often does the damage gate pass what it must not?"""
