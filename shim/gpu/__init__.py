"""GPUs: the driver's checkpoint calls, what NVML tells, and which GPUs a container has."""
