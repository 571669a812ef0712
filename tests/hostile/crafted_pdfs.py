"""PDFs made to hurt whoever opens them: bombs, cycles, absurd sizes and counts. Small files, written by hand."""

import zlib
from collections.abc import Callable, Sequence

_CATALOG = b"<</Type/Catalog/Pages 2 0 R>>"
_PAGES = b"<</Type/Pages/Kids[3 0 R]/Count 1>>"
_FONT = b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"
_SPEAKS = b"BT /F1 20 Tf 10 100 Td (speaks) Tj ET"
MIB = 1 << 20


def pdf(objects: Sequence[bytes], trailer: bytes = b"") -> bytes:
    """Write a file of numbered objects, the first its catalogue."""
    out, places = b"%PDF-1.7\n", []
    for number, body in enumerate(objects, start=1):
        places.append(len(out))
        out += b"%d 0 obj\n" % number + body + b"\nendobj\n"
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    head = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    tail = b"trailer\n<</Root 1 0 R/Size %d%s>>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, trailer, len(out))
    return out + head + table + tail


def stream(content: bytes, entries: bytes = b"") -> bytes:
    """Write a stream object."""
    return b"<</Length %d%s>>stream\n" % (len(content), entries) + content + b"\nendstream"


def page(
    content: bytes = _SPEAKS,
    *,
    box: bytes = b"0 0 150 200",
    entries: bytes = b"",
    more: Sequence[bytes] = (),
    filters: bytes = b"",
    resources: bytes = b"",
) -> bytes:
    """Write a file of one page; its own objects count from 6."""
    body = b"<</Type/Page/Parent 2 0 R/MediaBox[%s]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>%s>>%s>>"
    return pdf([_CATALOG, _PAGES, body % (box, resources, entries), stream(content, filters), _FONT, *more])


def _zeros(mebibytes: int, byte: bytes = b"\0", rounds: int = 1) -> bytes:
    """Compress so many MiB of one byte; each further round compresses the outcome again."""
    packer = zlib.compressobj(1)
    packed = b"".join(packer.compress(byte * MIB) for _ in range(mebibytes)) + packer.flush()
    for _ in range(rounds - 1):
        packed = zlib.compress(packed, 9)
    return packed


def _image(width: int, height: int, packed: bytes, filters: bytes = b"/Filter/FlateDecode", bits: int = 8) -> bytes:
    shape = b"/Type/XObject/Subtype/Image/Width %d/Height %d/ColorSpace/DeviceRGB/BitsPerComponent %d"
    return page(
        b"q 150 0 0 200 0 0 cm /I Do Q",
        resources=b"/XObject<</I 6 0 R>>",
        more=[stream(packed, shape % (width, height, bits) + filters)],
    )


def _nested_tree(depth: int) -> bytes:
    """A page at the end of a chain of page tree nodes."""
    chain = [
        b"<</Type/Pages/Kids[%d 0 R]/Count 1%s>>" % (n + 1, b"/Parent %d 0 R" % (n - 1) if n > 2 else b"")
        for n in range(2, 2 + depth)
    ]
    return pdf([_CATALOG, *chain, b"<</Type/Page/Parent %d 0 R/MediaBox[0 0 150 200]>>" % (depth + 1)])


def _form(body: bytes, entries: bytes = b"") -> bytes:
    return page(
        b"/X Do",
        resources=b"/XObject<</X 6 0 R>>",
        more=[stream(body, b"/Type/XObject/Subtype/Form/BBox[0 0 150 200]" + entries)],
    )


def _labels(tree: bytes, *more: bytes) -> bytes:
    catalog = b"<</Type/Catalog/Pages 2 0 R/PageLabels %s>>" % tree
    return pdf([catalog, _PAGES, b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 150 200]>>", *more])


def _doubling_forms(levels: int) -> bytes:
    """Forms that draw the next one ten times: 10 to the power of `levels` drawings."""
    forms = [
        stream(
            b"/X Do " * 10 if level < levels - 1 else b"0 0 m 9 9 l S",
            b"/Type/XObject/Subtype/Form/BBox[0 0 150 200]/Resources<</XObject<</X %d 0 R>>>>" % (level + 7),
        )
        for level in range(levels)
    ]
    return page(b"/X Do", resources=b"/XObject<</X 6 0 R>>", more=forms)


def _tiling(step: bytes) -> bytes:
    pattern = b"/Type/Pattern/PatternType 1/PaintType 1/TilingType 1/BBox[0 0 1 1]/XStep %s/YStep %s/Resources<<>>"
    return page(
        b"/Pattern cs /P scn 0 0 150 200 re f",
        resources=b"/Pattern<</P 6 0 R>>",
        more=[stream(b"0 0 1 1 re f", pattern % (step, step))],
    )


def _sampled_shading() -> bytes:
    function = b"<</FunctionType 0/Domain[0 1 0 1]/Range[0 1 0 1 0 1]/Size[65535 65535]/BitsPerSample 32/Length 4>>"
    shading = b"<</ShadingType 1/ColorSpace/DeviceRGB/Domain[0 1 0 1]/Function 7 0 R>>"
    return page(b"/S sh", resources=b"/Shading<</S 6 0 R>>", more=[shading, function + b"stream\n\0\0\0\0\nendstream"])


CRAFTED: dict[str, Callable[[], bytes]] = {
    # sizes
    "media box of a million points": lambda: page(box=b"0 0 1000000 1000000"),
    "media box beyond floats": lambda: page(box=b"0 0 1" + b"0" * 400 + b" 100"),
    "media box of NaN": lambda: page(box=b"0 0 NaN nan"),
    "media box of infinity": lambda: page(box=b"0 0 inf 1e999"),
    "media box of nothing": lambda: page(box=b""),
    "media box far away": lambda: page(box=b"999999990 999999990 1000000000 1000000000"),
    "user unit of a billion": lambda: page(entries=b"/UserUnit 1000000000"),
    "rotation of a billion and one": lambda: page(entries=b"/Rotate 1000000001"),
    # trees and counts
    "a million pages claimed": lambda: page().replace(b"/Count 1>>", b"/Count 1000000>>"),
    "a million pages that are one": lambda: pdf(
        [_CATALOG, b"<</Type/Pages/Kids[" + b"3 0 R " * 10**6 + b"]/Count 1000000>>", b"<</Type/Page/Parent 2 0 R>>"]
    ),
    "minus one pages": lambda: page().replace(b"/Count 1>>", b"/Count -1>>"),
    "page tree 200 deep": lambda: _nested_tree(200),
    "page tree 50,000 deep": lambda: _nested_tree(50_000),
    "page tree that is its own child": lambda: pdf([_CATALOG, b"<</Type/Pages/Kids[2 0 R 2 0 R]/Count 2>>"]),
    "page that is its own parent": lambda: pdf([_CATALOG, _PAGES, b"<</Type/Page/Parent 3 0 R>>"]),
    "catalogue that is the page tree": lambda: pdf([b"<</Type/Catalog/Pages 1 0 R/Kids[1 0 R]/Count 1>>"]),
    # bombs
    "contents of 1 GiB of spaces": lambda: page(_zeros(1024, b" "), filters=b"/Filter/FlateDecode"),
    "contents compressed three times": lambda: page(
        _zeros(1024, b" ", rounds=3), filters=b"/Filter[/FlateDecode/FlateDecode/FlateDecode]"
    ),
    "contents of 100 filters": lambda: page(_SPEAKS, filters=b"/Filter[" + b"/ASCIIHexDecode" * 100 + b"]"),
    "picture of 60,000 by 60,000": lambda: _image(60_000, 60_000, _zeros(64)),
    "picture of 2 billion by 2 billion": lambda: _image(2**31 - 1, 2**31 - 1, _zeros(1)),
    "picture of minus one": lambda: _image(-1, -1, _zeros(1)),
    "picture of 10,000 bits": lambda: _image(100, 100, _zeros(1), bits=10_000),
    "fax of 2 billion columns": lambda: _image(
        100, 100, b"\0" * 99, b"/Filter/CCITTFaxDecode/DecodeParms<</K -1/Columns 2147483647/Rows 2147483647>>", 1
    ),
    "JPEG 2000 of nothing": lambda: _image(9, 9, b"\xff\x4f\xff\x51" + b"\xff" * 80, b"/Filter/JPXDecode"),
    "JBIG2 of nothing": lambda: _image(9, 9, b"\xff" * 200, b"/Filter/JBIG2Decode", 1),
    "JPEG of nothing": lambda: _image(9, 9, b"\xff\xd8\xff\xc0" + b"\xff" * 200, b"/Filter/DCTDecode"),
    "predictor of a billion columns": lambda: page(
        zlib.compress(_SPEAKS), filters=b"/Filter/FlateDecode/DecodeParms<</Predictor 15/Columns 1000000000/Colors 4>>"
    ),
    "text of 20 million letters": lambda: page(
        zlib.compress(b"BT /F1 1 Tf " + b"(aaaaaaaaaaaaaaaaaaaa) Tj " * 10**6), filters=b"/Filter/FlateDecode"
    ),
    "a million wrong operators": lambda: page(zlib.compress(b"quux " * 10**6), filters=b"/Filter/FlateDecode"),
    # cycles
    "form that draws itself": lambda: _form(b"/X Do", b"/Resources<</XObject<</X 6 0 R>>>>"),
    "forms that draw forms, ten to the ninth": lambda: _doubling_forms(9),
    "length that is its own stream": lambda: page().replace(b"/Length 37", b"/Length 4 0 R"),
    "contents that hold themselves": lambda: pdf(
        [_CATALOG, _PAGES, b"<</Type/Page/Parent 2 0 R/Contents 4 0 R>>", b"[4 0 R 4 0 R]"]
    ),
    "cross references that lead in a circle": lambda: page().replace(b"/Root", b"/Prev 9 /XRefStm 9 /Root"),
    "reference to a reference to itself": lambda: pdf([b"1 0 R"]),
    "font that draws itself": lambda: page().replace(
        _FONT,
        b"<</Type/Font/Subtype/Type3/FontBBox[0 0 9 9]/FontMatrix[1 0 0 1 0 0]/CharProcs<</a 4 0 R>>"
        b"/Encoding<</Differences[0/a]>>/FirstChar 0/LastChar 0/Widths[1]/Resources<</Font<</F1 5 0 R>>>>>>",
    ),
    "labels that hold themselves": lambda: _labels(b"4 0 R", b"<</Kids[4 0 R 4 0 R]>>"),
    "label of ten million letters": lambda: _labels(b"<</Nums[0<</P(" + b"x" * 10**7 + b")>>]>>"),
    "label number beyond roman": lambda: _labels(b"<</Nums[0<</S/R/St 2000000000>>]>>"),
    "label of control characters": lambda: _labels(b"<</Nums[0<</P(\x1b[31m\\n\\000\xfe)>>]>>"),
    # nesting and drawing
    "arrays 100,000 deep": lambda: page(b"[" * 100_000),
    "dictionaries 100,000 deep": lambda: page(entries=b"/A " + b"<</A " * 100_000 + b">>" * 100_000),
    "a million saved states": lambda: page(zlib.compress(b"q " * 10**6), filters=b"/Filter/FlateDecode"),
    "dashes of a billionth": lambda: page(b"[0.000000001] 0 d 0 0 m 150 200 l S"),
    "tiles of a billionth": lambda: _tiling(b"0.000000001"),
    "tiles of nothing": lambda: _tiling(b"0"),
    "shading of four billion samples": lambda: _sampled_shading(),
    "font of a billion points": lambda: page(b"BT /F1 1000000000 Tf (A) Tj ET"),
    "font that is not there": lambda: page(b"BT /F9 20 Tf 10 100 Td (speaks) Tj ET"),
    "font file of garbage": lambda: page(more=[stream(b"\xff" * 999)]).replace(
        _FONT, b"<</Type/Font/Subtype/TrueType/BaseFont/X/FontDescriptor<</Type/FontDescriptor/FontFile2 6 0 R>>>>"
    ),
    # what is hardly a PDF
    "header and nothing": lambda: b"%PDF-1.7\n",
    "header and a megabyte of zeros": lambda: b"%PDF-1.7\n" + b"\0" * MIB,
    "header after 1,000 bytes of junk": lambda: b"\xff" * 1000 + page(),
    "encryption of garbage": lambda: pdf([_CATALOG, _PAGES], b"/Encrypt<</Filter/Standard/V 5/R 6/O(x)/U(y)/P -1>>"),
    "encryption by nobody": lambda: pdf([_CATALOG, _PAGES], b"/Encrypt<</Filter/Nobody/V 9>>/ID[(a)(b)]"),
    "compressed object that holds itself": lambda: pdf(
        [_CATALOG, _PAGES, stream(b"3 0 <<>>", b"/Type/ObjStm/N 1/First 4/Extends 3 0 R")]
    ),
}
"""By what is wrong with them."""
