"""Pages: the picture, the text and the identity of one page of a document. Imports nothing from the other rooms."""
