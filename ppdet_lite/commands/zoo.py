"""List and download published weights: ppdet-lite zoo list | show NAME | get NAME

list  all names, with the AP that their project published, our recipe, and the project's license
show  one entry: address, checksum, settings, license, place in the cache
get   download and convert it, and print the run folder; zoo:NAME does the same where it is used
"""

import argparse

from ppdet_lite.core import log, runtime


def main() -> None:
    """Parse the arguments and run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|show|get")
    actions.add_parser("list", help="list all names")
    for action, text in (("show", "show one entry"), ("get", "download and convert one entry")):
        actions.add_parser(action, help=text).add_argument("name", metavar="NAME", help="such as ppdet/...")
    args = parser.parse_args()
    from ppdet_lite.peers.zoo import downloaded, find_entry, table, zoo_entries

    log.configure()
    if args.action == "list":
        print("\n".join(table(zoo_entries().values())))
        return
    entry = find_entry(args.name)
    if args.action == "show":
        print("\n".join(f"{title + ':':<20} {text}" for title, text in entry.facts()))
    elif entry.recipe is None:
        print(downloaded(entry))
    else:
        with runtime.quiet_import():
            import paddle

            from ppdet_lite.assembly.zoo import zoo_folder
        paddle.set_device("cpu")
        print(zoo_folder(entry.spec))
