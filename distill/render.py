from dataclasses import dataclass
@dataclass(frozen=True)
class Example:
    prompt: list[int]
    completion: list[int]
    def __len__(self): return len(self.prompt)+len(self.completion)
