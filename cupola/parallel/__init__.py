"""How a run is spread over processors: devices, engines, layouts."""
