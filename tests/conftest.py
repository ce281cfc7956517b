pytest_plugins = [
    "fixtures.certs",
    "fixtures.postgres",
    "fixtures.clients",
    "fixtures.proxy",
    "fixtures.shared_proxy",
    "fixtures.fake_backend",
    "fixtures.legs",
    "fixtures.guide",
]
