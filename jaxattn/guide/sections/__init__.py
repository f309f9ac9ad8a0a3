"""The page's sections, one file each: every number for every setting of the switches, computed by the library."""

from jaxattn.guide.section import Section
from jaxattn.guide.sections.causal import causal_section
from jaxattn.guide.sections.dropped import dropout_section
from jaxattn.guide.sections.heads import heads_section
from jaxattn.guide.sections.simple import simple_section
from jaxattn.guide.sections.trainable import trainable_section
from jaxattn.guide.sections.trained import trained_section
from jaxattn.guide.story import Story


def make_sections(story: Story) -> list[Section]:
    """Compute all sections of the page.

    Example:
        >>> from jaxattn.guide.sections import make_sections
        >>> from jaxattn.guide.story import book_story
        >>> [section.id for section in make_sections(book_story())]
        ['simple', 'trainable', 'causal', 'dropout', 'heads']
    """
    stages = [simple_section, trainable_section, causal_section, dropout_section, heads_section]
    sections = [section(story) for section in stages]
    return [trained_section(story), *sections] if story.layers else sections
