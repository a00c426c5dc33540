"""The release that a streaming job begins with, or that a replay names."""

from beamrec.io.pgvector import ReleaseStore
from beamrec.schemas.errors import UsageError
from beamrec.schemas.releases import ActiveRelease
from beamrec.schemas.shop import Shop

__all__ = ["active_release", "named_release"]


def active_release(vector_db: str, shop: Shop) -> ActiveRelease:
    """The active release of a vector store, which must have been trained for this shop.

    Raises:
      UsageError: none is active, or it was trained for another shop, or one with other inputs.
      UnavailableError: the store is away.
    """
    store = ReleaseStore(vector_db)
    active = store.active()
    if active is None:
        loaded = [release["id"] for release in store.releases()]
        then = (
            f"`beamrec release promote {loaded[0]}`" if loaded else "`beamrec train`, `beamrec release load`"
        )
        raise UsageError(f"no release is active; next: {then}")
    _check_shop(store, active, shop, "promote a release of this one")
    return active


def named_release(vector_db: str, shop: Shop, release_id: str) -> ActiveRelease:
    """A loaded release, active or not, which must have been trained for this shop.

    Raises:
      UsageError: it is not loaded (any more), or was trained for another shop, or one with other inputs.
      UnavailableError: the store is away.
    """
    store = ReleaseStore(vector_db)
    found = store.release(release_id)
    _check_shop(store, found, shop, "name a release of this one")
    return found


def _check_shop(store: ReleaseStore, release: ActiveRelease, shop: Shop, remedy: str) -> None:
    manifest = store.show(release.id)["manifest"]
    if manifest["shop"] != shop.name:
        raise UsageError(
            f"release {release.id} was trained for the shop {manifest['shop']!r}, not for {shop.name!r}: "
            f"give that shop's --shop, or {remedy}"
        )
    inputs = manifest["user_inputs"]
    columns = [shop.customers.key, *(feature.column for feature in shop.user_features)]
    if inputs and [entry["column"] for entry in inputs] != columns:
        raise UsageError(
            f"release {release.id} was trained for a shop with the inputs "
            f"{[entry['column'] for entry in inputs]}, not {columns}: give the same --shop, or {remedy}"
        )
