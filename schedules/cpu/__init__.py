"""CPU schedules: register-blocked micro-kernels over the streaming definitions."""
