"""Moving a domain to another host: what the hosts say to each other, who may run the domain, the journals."""
