"""A page as a browser's parser sees it, with the mistakes that a browser would forgive."""

from html.parser import HTMLParser

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


class Page(HTMLParser):
    """Elements with their attributes, texts by element, and every mistake."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.mistakes, self.texts, self._open = [], [], [], []
        self.feed(text)
        self.close()
        self.mistakes += [f"<{tag}> is never closed" for tag in self._open]

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        if len(names) != len(set(names)):
            self.mistakes.append(f"<{tag}> repeats an attribute: {names}")
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        if not self._open or self._open[-1] != tag:
            self.mistakes.append(f"</{tag}> closes {self._open[-1:]} at {self.getpos()}")
        else:
            self._open.pop()

    def handle_data(self, data):
        self.texts.append((tuple(self._open), data))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def words(self):
        """What a reader sees: no scripts, no styles."""
        return " ".join(text for path, text in self.texts if not {"script", "style"} & set(path))

    def inside(self, tag, **attributes):
        """Texts directly inside the elements of a kind, in order."""
        del attributes
        return [text for path, text in self.texts if path and path[-1] == tag]
