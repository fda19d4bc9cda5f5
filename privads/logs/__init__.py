"""Ads logs: public schema, lazy columnar reading, one contribution bound, and a simulator."""
