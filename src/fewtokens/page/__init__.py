"""The local web application of `fewtokens page`: compares two methods on a clip, in a browser, without any other host.

clips.py      the clips that it lists and receives
workbench.py  reads, encodes and compares
pictures.py   what it draws of a comparison, and the files to download
recipes.py    the command and the Python code of a comparison
jobs.py       one job at a time, with progress and cancel
guard.py      which requests it answers
app.py        the routes; page.html is the page itself
"""
