#!/usr/bin/env python3
"""The PromQL of a Grafana dashboard, without Grafana.

`dashboard.py rules FILE` writes every expression as a rule file, for `promtool check rules`. `dashboard.py ask FILE
URL` asks a running Prometheus each of them: one that it refuses is a fault, and so is one that finds nothing, except
where its metrics have no series yet. Both refuse what Grafana would not show: ids and places used twice, a data source
that is none of the dashboard's.
"""

import json
import re
import sys
import urllib.parse
import urllib.request

# What Grafana fills in.
VARIABLES = {"$__rate_interval": "1m", "$__interval": "15s", "$model": ".*"}
# Families that have no series until something has happened: everything else is there from the start.
LATER = ("retries_withheld", "fallbacks", "model_swaps")


def expressions(file):
    with open(file, encoding="utf-8") as text:
        dashboard = json.load(text)
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    faults, seen, found = [], set(), []
    for panel in dashboard["panels"]:
        place = (panel["gridPos"]["x"], panel["gridPos"]["y"])
        for what in (f"id {panel['id']}", f"place {place}"):
            if what in seen:
                faults.append(f"{panel['title']}: {what} is another panel's")
            seen.add(what)
        for target in panel.get("targets", []):
            if target["datasource"]["uid"].strip("${}") not in variables:
                faults.append(f"{panel['title']}: no variable {target['datasource']['uid']}")
            expression = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            if "$" in expression:
                faults.append(f"{panel['title']}: a variable that nothing fills in: {expression}")
            found.append((panel["title"], expression))
    if faults:
        sys.exit("\n".join(faults))
    return found


def rules(file):
    lines = ["groups:", "  - name: dashboard", "    rules:"]
    for number, (_, expression) in enumerate(expressions(file)):
        lines += [f"      - record: panel:{number}", f"        expr: {json.dumps(expression)}"]
    print("\n".join(lines))


def ask(file, url):
    faults, count, empty = [], 0, 0
    for title, expression in expressions(file):
        query = urllib.parse.urlencode({"query": expression})
        try:
            with urllib.request.urlopen(f"{url}/api/v1/query?{query}", timeout=10) as answer:
                result = json.load(answer)["data"]["result"]
        except OSError as fault:
            faults.append(f"{title}: {fault}: {expression}")
            continue
        count += 1
        if not result:
            empty += 1
            # A comparison finds nothing on a good day.
            if not re.search(rf"ai_gateway_({'|'.join(LATER)})_total| == ", expression):
                faults.append(f"{title}: nothing is found: {expression}")
    print(f"            {count} expressions, {empty} of them of what has not happened yet")
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    {"rules": rules, "ask": ask}[sys.argv[1]](*sys.argv[2:])
