"""Sample prompts with a policy and a value model: settings, runs, budgets, records and traces."""
