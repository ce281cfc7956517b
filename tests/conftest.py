from hypothesis import settings

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

# How long an example takes says more about the machine's other work than about the code.
settings.register_profile("pgtlsproxy", deadline=None)
settings.load_profile("pgtlsproxy")
