"""What was done to people's data, and what it costs.

Events are data: `mechanisms` makes them, `accountant` reads them, `ledger` stores them, `report` prints them.
"""
