"""What a sweep is made of beside its plan.

worker   one worker: takes runs, trains them, waits for those of others
claims   which worker makes which run
results  rows and tables of the runs
page     tables as one HTML file
"""
