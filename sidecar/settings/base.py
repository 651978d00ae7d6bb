"""What all models of the configuration share."""

from pydantic import BaseModel, ConfigDict


class Model(BaseModel):
    """What all models share: unknown keys are errors, values cannot change, input never shows in an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, validate_default=True)
