"""Error messages for end users, in Russian and English, by the class of the exception.

The exception's own text is for operators.
"""

from __future__ import annotations

from typing import Final

from .. import errors

_CHECK_SETTINGS: Final = (
    "Модель сейчас не может ответить: настройки сервиса должен проверить администратор.",
    "The model cannot answer at the moment: the administrator has to check the settings of the service.",
)
_BUSY: Final = (
    "Сейчас слишком много запросов. Попробуйте ещё раз через минуту.",
    "There are too many requests at the moment. Please try again in a minute.",
)
_UNUSABLE: Final = (
    "Модель дала непригодный ответ. Попробуйте ещё раз или измените запрос.",
    "The model returned an unusable answer. Please try again, or change the request.",
)
# An unlisted class has the message of its nearest listed base class.
_MESSAGES: Final[dict[type, tuple[str, str]]] = {
    BaseException: (
        "Не удалось получить ответ модели. Попробуйте ещё раз позже.",
        "The model did not answer. Please try again later.",
    ),
    errors.ConfigError: _CHECK_SETTINGS,
    errors.QuotaExceeded: _CHECK_SETTINGS,
    errors.RequestError: (
        "Этот запрос выполнить нельзя. Измените его и попробуйте снова.",
        "This request cannot be carried out. Please change it and try again.",
    ),
    errors.ContentFiltered: (
        "Модель отказалась отвечать на этот запрос. Сформулируйте его иначе.",
        "The model refused to answer this request. Please rephrase it.",
    ),
    errors.CapabilityError: (
        "Модель не умеет выполнять такие запросы. Сообщите об этом администратору.",
        "The model cannot handle a request of this kind. Please contact the administrator.",
    ),
    errors.ContextOverflow: (
        "Материал слишком длинный для модели. Сократите его или разделите на части.",
        "The material is too long for the model. Please shorten it or split it.",
    ),
    errors.Unavailable: (
        "Модель сейчас недоступна. Попробуйте ещё раз через несколько минут.",
        "The model is not available at the moment. Please try again in a few minutes.",
    ),
    errors.ModelLoading: (
        "Модель ещё загружается. Попробуйте ещё раз через минуту.",
        "The model is still loading. Please try again in a minute.",
    ),
    errors.Overloaded: _BUSY,
    errors.RateLimited: _BUSY,
    errors.TimedOut: (
        "Модель не успела ответить. Попробуйте ещё раз позже.",
        "The model did not answer in time. Please try again later.",
    ),
    errors.BrokenAnswer: (
        "Ответ модели получен не полностью. Попробуйте ещё раз.",
        "The answer of the model is incomplete. Please try again.",
    ),
    errors.TokenRepeated: _UNUSABLE,
    errors.AnswerTooLong: _UNUSABLE,
    errors.AnswerTruncated: _UNUSABLE,
    errors.EmptyAnswer: _UNUSABLE,
    errors.ThinkingLeaked: _UNUSABLE,
    errors.SchemaMismatch: _UNUSABLE,
}


def public_message(error: BaseException, language: str = "ru") -> str:
    """Return a message for the end user. It names no provider, model, address or variable.

    Args:
        error: any exception, not only an LLMError.
        language: "ru" for Russian. Any other value is English.
    """
    russian, english = next(_MESSAGES[cls] for cls in type(error).__mro__ if cls in _MESSAGES)
    return russian if language == "ru" else english
