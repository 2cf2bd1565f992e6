"""How a snapshot comes back: plan.py says what will be done, engine.py does it, steps.py how."""
