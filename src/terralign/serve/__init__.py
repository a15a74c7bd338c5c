"""A folder of embedded scenes over HTTP: an API, and a searchable map (extra `serve`).

`app` answers; `served` searches; `pictures` shows scenes; `security` stands before all of it.
"""
