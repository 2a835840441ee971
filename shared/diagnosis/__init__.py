"""Looks whether an installation is sound, and what mends it: for `GET /api/admin/diagnosis` and `errand doctor`."""
