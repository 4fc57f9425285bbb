"""The entry point of the `kvnode` command."""

import click


@click.group()
@click.version_option(package_name="kvnode", prog_name="kvnode")
def main() -> None:
    """A replicated, persistent, ordered key-value node."""


if __name__ == "__main__":
    main()
