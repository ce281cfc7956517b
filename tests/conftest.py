from hypothesis import settings

LONG = (
    "matrix/test_every_rule_has_cells_that_need_it.py",
    "promises/test_mutated_sessions_harm_nobody.py",
    "promises/test_many_sessions_leave_nothing_behind.py",
    "proxy/test_reload_fuzz.py",
    "clients/",
    "chains/",
    "promises/test_the_guide_holds_from_top_to_bottom.py",
    "promises/test_limits_and_cancels_hold_over_all_workers.py",
    "promises/test_thousands_of_idle_sessions_cost_memory_alone.py",
    "promises/test_the_recipes_for_certificates_hold.py",
    "matrix/",
    "promises/",
)
"""Files whose tests take long, the longest first: where files run side by side, none is left over in the end."""

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


def pytest_collection_modifyitems(items):
    items.sort(
        key=lambda item: next(
            (i for i, name in enumerate(LONG) if f"/tests/{name}" in str(item.path)), len(LONG)
        )
    )
