"""Settings of every test."""

from hypothesis import settings

settings.register_profile("psgc", deadline=None)  # on a busy machine any example may take long; pytest's timeout holds
settings.load_profile("psgc")
