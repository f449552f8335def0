"""Our rules inside other people's JAX: every rule in every context, judged as everywhere.

`rows` says what is judged, `contexts` where on one device, `devices` where on several, `stage` runs
it all for `python -m verify --only interop`.
"""
