"""Search of schedule configs: strategies propose, hardware measures, records remain."""
