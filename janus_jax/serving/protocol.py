"""Bodies of OpenAI's API, and their conversion to requests of the engine."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from janus_jax.generation.engine import ChatRequest, ConverseRequest, EditRequest, GenerateRequest
from janus_jax.generation.interleaved import ConversationImageSampler
from janus_jax.processing import ImageSource, Message
from janus_jax.processing.tokenizer import IMAGE_PLACEHOLDER
from janus_jax.serving.errors import ApiError
from janus_jax.serving.images import PictureFormat
from janus_jax.serving.options import ServerOptions

Seed = Annotated[int, Field(ge=0, lt=2**32)]
ReadImage = Callable[[str, str], ImageSource]
"""Reads the image of a URL, given the name of its field."""

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class _Body(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: str | None = None

    def check_unsupported(self, neutral: Mapping[str, tuple[Any, ...]]) -> None:
        """Checks fields that the server does not support.

        Args:
          neutral: Name of each field, and its values without an effect.

        Raises:
          ApiError: A field has an effect.
        """
        for name, values in neutral.items():
            value = (self.model_extra or {}).get(name)
            if value is not None and value not in values:
                raise ApiError(400, f"{name} is not supported by this model.", param=name, code="unsupported_parameter")


class ImageUrl(BaseModel):
    """Address of an image."""

    url: str


class Part(BaseModel):
    """Part of the content of a message."""

    type: Literal["text", "image_url"]
    text: str = ""
    image_url: ImageUrl | None = None


class GeneratedImage(BaseModel):
    """A picture that the model generated in an earlier answer, as the answer contained it.

    Attributes:
      text_offset: Number of characters of the message's text before the picture. None: it is after the text.
    """

    image_url: ImageUrl
    text_offset: int | None = Field(default=None, ge=0)


class ChatMessage(BaseModel):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None
    images: list[GeneratedImage] | None = None

    def parts(self) -> list[Part]:
        """Returns the content with the pictures of `images` at their positions."""
        if not self.images:
            return [Part(type="text", text=self.content)] if isinstance(self.content, str) else self.content or []
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())
        parts, end = [], 0
        for image in sorted(self.images, key=lambda one: len(text) if one.text_offset is None else one.text_offset):
            begin, end = end, len(text) if image.text_offset is None else image.text_offset
            parts.append(Part(type="text", text=text[begin:end]))
            parts.append(Part(type="image_url", image_url=image.image_url))
        return [*parts, Part(type="text", text=text[end:])]


class StreamOptions(BaseModel):
    """Options of a stream."""

    include_usage: bool = False


class ImageConfig(BaseModel):
    """Settings of the pictures of an answer. See `ConversationImageSampler`."""

    model_config = ConfigDict(extra="forbid")

    guidance_scale: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    unconditional: str | None = None
    max_images: int | None = Field(default=None, ge=0)


class ChatBody(_Body):
    """Body of /v1/chat/completions. `top_k` and `image_config` extend OpenAI's fields.

    Attributes:
      modalities: With "image" the model may generate pictures in its answer.
    """

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, lt=2**31)
    seed: Seed | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    modalities: list[Literal["text", "image"]] | None = None
    image_config: ImageConfig | None = None

    def request(self, read_image: ReadImage, options: ServerOptions) -> ChatRequest:
        """Returns the request of the engine.

        Raises:
          ApiError: A field is not supported, an image is not usable, or a limit is exceeded.
        """
        self.check_unsupported(
            {
                "n": (1,),
                "tools": ([],),
                "functions": ([],),
                "logprobs": (False,),
                "response_format": ({"type": "text"},),
                "audio": (),
                "presence_penalty": (0,),
                "frequency_penalty": (0,),
                "logit_bias": ({},),
            }
        )
        messages = [self._message(index, message, read_image) for index, message in enumerate(self.messages)]
        images = sum(len(message.get("images", ())) for message in messages)
        if images > options.max_images:
            raise ApiError(
                400, f"messages has {images} images; this server allows {options.max_images}.", param="messages"
            )
        check_length("messages", sum(len(message["content"]) for message in messages), options)
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if len(stop) > 4 or not all(stop):
            raise ApiError(400, "stop must be at most 4 texts, none of them empty.", param="stop")
        fields: dict[str, Any] = {
            "messages": messages,
            "max_new_tokens": self.max_completion_tokens or self.max_tokens,
            "temperature": self.temperature or 0.0,
            "top_k": self.top_k or 0,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "seed": self.seed or 0,
            "stop": stop,
        }
        if "image" in (self.modalities or ()):
            return ConverseRequest(**fields, image_sampling=self._image_sampling(options))
        if self.image_config is not None:
            raise ApiError(400, 'image_config needs modalities ["text", "image"].', param="image_config")
        return ChatRequest(**fields)

    def _image_sampling(self, options: ServerOptions) -> dict[str, Any]:
        given = {} if self.image_config is None else self.image_config.model_dump(exclude_none=True)
        count = given.setdefault("max_images", min(ConversationImageSampler.max_images, options.max_images))
        if count > options.max_images:
            name = "image_config.max_images"
            raise ApiError(400, f"{name} is {count}; this server allows {options.max_images}.", param=name)
        return given

    def _message(self, index: int, message: ChatMessage, read_image: ReadImage) -> Message:
        where = f"messages.{index}.content"
        if message.images and message.role != "assistant":
            name = f"messages.{index}.images"
            raise ApiError(400, f"{name}: only messages of the assistant have images; use image_url.", param=name)
        # Text follows an image of the user on a new line, as in training. The model's own images have no such line.
        line = "" if message.role == "assistant" else "\n"
        content, images = "", list[ImageSource]()
        for number, part in enumerate(message.parts()):
            if part.type == "text":
                if IMAGE_PLACEHOLDER in part.text:
                    raise ApiError(400, f"{where}: the text contains {IMAGE_PLACEHOLDER}.", param=where)
                content += part.text
                continue
            if part.image_url is None:
                raise ApiError(400, f"{where}.{number}: image_url is missing.", param=where)
            images.append(read_image(part.image_url.url, f"{where}.{number}.image_url"))
            content += IMAGE_PLACEHOLDER + line
        return {"role": _ROLES[message.role], "content": content, "images": images}


class EditedImage(BaseModel):
    """An image to edit, as a URL."""

    image_url: str


class PictureBody(_Body):
    """Fields of /v1/images/generations and /v1/images/edits. Fields from `seed` to `editing_style` extend OpenAI's."""

    prompt: str
    n: int | None = Field(default=None, ge=1)
    size: str | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: PictureFormat | None = None
    stream: bool | None = None
    partial_images: int | None = Field(default=None, ge=0, le=3)
    seed: Seed | None = None
    guidance_scale: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    steps: int | None = None
    sampler: str | None = None
    image_guidance_scale: float | None = None
    editing_style: str | None = None

    images: list[EditedImage] | None = None

    def check(self, side: int, options: ServerOptions) -> None:
        """Checks the fields that both routes have.

        Args:
          side: Side of the pictures of the model in pixels.
          options: Options of the server.

        Raises:
          ApiError: A value is not supported.
        """
        check_length("prompt", len(self.prompt), options)
        if not self.prompt.strip():
            raise ApiError(400, "prompt is empty.", param="prompt")
        if (self.n or 1) > options.max_images:
            raise ApiError(400, f"n is {self.n}; this server allows {options.max_images}.", param="n")
        if self.size not in (None, "auto", f"{side}x{side}"):
            raise ApiError(400, f"size is {self.size!r}; this model makes pictures of {side}x{side}.", param="size")
        if self.partial_images and not self.stream:
            raise ApiError(400, "partial_images needs stream.", param="partial_images")

    def generation(self) -> GenerateRequest:
        """Returns the request of the engine for /v1/images/generations."""
        names = ("guidance_scale", "temperature", "top_k", "top_p", "steps", "sampler")
        return GenerateRequest(
            prompt=self.prompt,
            n=self.n or 1,
            seed=self.seed or 0,
            settings=self._settings(names),
            partial_images=self.partial_images or 0,
        )

    def edit(self, images: list[Image.Image]) -> EditRequest:
        """Returns the request of the engine for /v1/images/edits."""
        names = ("guidance_scale", "image_guidance_scale", "temperature", "top_k", "top_p")
        style = {} if self.editing_style is None else {"style": self.editing_style}
        return EditRequest(
            images=images,
            instruction=self.prompt,
            n=self.n or 1,
            seed=self.seed or 0,
            settings=self._settings(names) | style,
            partial_images=self.partial_images or 0,
        )

    def _settings(self, names: tuple[str, ...]) -> dict[str, Any]:
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def check_length(name: str, length: int, options: ServerOptions) -> None:
    """Checks the length of a text.

    Raises:
      ApiError: The text is too long.
    """
    if length > options.max_prompt_chars:
        raise ApiError(
            400,
            f"{name} has {length} characters; this server allows {options.max_prompt_chars}.",
            param=name,
            code="prompt_too_long",
        )
