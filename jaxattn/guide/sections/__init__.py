"""The page's sections, one file each: every number for every setting of the switches, computed by the library."""

from jaxattn.guide.section import Section
from jaxattn.guide.sections.before import before_section
from jaxattn.guide.sections.causal import causal_section
from jaxattn.guide.sections.dropped import dropout_section
from jaxattn.guide.sections.gpt2 import gpt2_sections
from jaxattn.guide.sections.grouped import grouped_section
from jaxattn.guide.sections.heads import heads_section
from jaxattn.guide.sections.opening import closing_section, opening_section
from jaxattn.guide.sections.positions import positions_section
from jaxattn.guide.sections.simple import simple_section
from jaxattn.guide.sections.trainable import trainable_section
from jaxattn.guide.sections.trained import trained_section
from jaxattn.guide.sections.windows import windows_section
from jaxattn.guide.story import Story

STAGES = [before_section, simple_section, trainable_section, causal_section, dropout_section, heads_section]
LATER = [positions_section, grouped_section, windows_section]


def make_sections(story: Story) -> list[Section]:
    """Compute all sections of the page.

    Example:
        >>> from jaxattn.guide.sections import make_sections
        >>> from jaxattn.guide.story import book_story
        >>> [section.id for section in make_sections(book_story())]  # doctest: +NORMALIZE_WHITESPACE
        ['opening', 'before', 'simple', 'trainable', 'causal', 'dropout', 'heads', 'positions', 'grouped', 'windows',
         'closing']
    """
    sections = [section(story) for section in STAGES + LATER]
    if story.gpt2:
        return [*gpt2_sections(story, story.gpt2), *sections]
    if story.layers:
        return [trained_section(story), *sections]
    return [opening_section(), *sections, closing_section(story)] if story.from_book else sections
