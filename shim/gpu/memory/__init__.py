"""GPU memory that is moved past the driver: held, taken, copied and given back (native/gpu)."""
