"""The web console: pages rendered here, over the same verbs as the API.

`routes.py` declares the pages. `visits.py` finds who asks, and checks what a form sends; `pages.py` answers with a page
or with its JSON twin; `verbs.py` asks the API's own handlers; `login.py` opens and ends sessions. One module a tab.
"""
