"""Parses XML into elements with line numbers. Documents with a DTD are refused: entities could expand without bound."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers import expat

from ppdet_lite.core.errors import UserError

UNREADABLE = "\ufffd"  # stands for the bytes of a text that are not in its encoding
_DECLARED = re.compile(rb"""\s*<\?xml[^>]*?\sencoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")
# Declared encoding -> its superset, whose additional characters programs write in spite of the declaration.
_SUPERSETS = {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc-kr": "cp949"}


@dataclass
class Element:
    """An element of an XML file."""

    tag: str
    location: str  # "file:line"
    text: str = ""
    children: list["Element"] = field(default_factory=list)
    attributes: dict[str, str] = field(default_factory=dict)

    def find_all(self, tag: str) -> list["Element"]:
        """Return the children with a tag."""
        return [child for child in self.children if child.tag == tag]

    def find(self, tag: str) -> "Element | None":
        """Return the first child with a tag, None if there is none."""
        return next(iter(self.find_all(tag)), None)

    def require(self, tag: str) -> "Element":
        """Return the first child with a tag. Raises UserError with the location of this element if there is none."""
        child = self.find(tag)
        if child is None:
            raise UserError(f"{self.location}: <{self.tag}> has no <{tag}>")
        return child

    def attribute(self, name: str) -> str:
        """Return an attribute. Raises UserError with the location of this element if it does not have it."""
        if name not in self.attributes:
            raise UserError(f"{self.location}: <{self.tag}> has no attribute {name}")
        return self.attributes[name]


def read_xml(path: Path) -> Element:
    """Return the root element of an XML file; text that is not in the file's encoding contains UNREADABLE.

    Raises UserError with the line if the file is not well-formed or has a DTD.
    """
    try:
        content = _decode(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except LookupError as error:
        raise UserError(f"{path}:1: cannot be read as XML: {error}; save it as UTF-8") from None
    parser, root = expat.ParserCreate(), Element("", str(path))
    open_elements = [root]

    def start(tag: str, attributes: dict[str, str]) -> None:
        element = Element(tag, f"{path}:{parser.CurrentLineNumber}", attributes=attributes)
        open_elements[-1].children.append(element)
        open_elements.append(element)

    def end(tag: str) -> None:
        open_elements.pop()

    def text(data: str) -> None:
        open_elements[-1].text += data

    def refuse(*declaration: Any) -> None:
        raise UserError(f"{path}:{parser.CurrentLineNumber}: has a DTD (<!DOCTYPE>), which is not supported; remove it")

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text
    parser.StartDoctypeDeclHandler, parser.buffer_text = refuse, True
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise UserError(f"{path}:{error.lineno}: not well-formed XML: {expat.ErrorString(error.code)}") from None
    except ValueError as error:  # lone surrogates, which UTF-7 can encode
        raise UserError(f"{path}: cannot be read as XML: {error}") from None
    return root.children[0]


def _decode(content: bytes) -> str:
    """Decode XML by its byte order mark or zero bytes, the encoding that it declares, or UTF-8.

    No byte of a character in these encodings looks like markup, so that unreadable characters leave the rest intact.
    Raises LookupError if Python does not know the declared encoding.
    """
    encoding: str = json.detect_encoding(content)
    declared = _DECLARED.match(content)
    if encoding == "utf-8" and declared is not None:
        name = declared[1].decode().lower()
        # a declared UTF-16 without zero bytes was converted to UTF-8 later
        encoding = encoding if name.startswith(("utf-16", "utf-32", "ucs-")) else _SUPERSETS.get(name, name)
    return content.decode(encoding, errors="replace")
