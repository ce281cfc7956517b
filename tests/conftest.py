pytest_plugins = ["fixtures.certs", "fixtures.postgres", "fixtures.clients", "fixtures.proxy"]
