"""Three limits that match every request of the benchmarks, and never refuse one."""

MODEL = "benchmark-model"

SECTION = """
usage_plugin:
  data_dir: ./usage
  timezone: Europe/Berlin
  limits:
    - {name: daily, per: user, window: day, max_cost: 1000000}
    - {name: monthly, per: user, window: month, match: {model: "benchmark-*"}, max_cost: 1000000}
    - {name: company, per: global, window: month, max_cost: 100000000}
"""
